# Decision-based workflow routing
conditional_workflow = {
    "conditions": {
        "has_ai_features": ["ai_ml_specialist"],
        "needs_mobile": ["mobile_developer"],
        "enterprise_deployment": ["cloud_architect", "monitoring_specialist"]
    }
}
