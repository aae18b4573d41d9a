# Concurrent execution where possible
parallel_groups = [
    {
        "phase": "development",
        "agents": ["backend_developer", "frontend_developer", "database_admin"],
        "shared_context": "technical_specification"
    },
    {
        "phase": "validation", 
        "agents": ["qa_testing", "security_specialist"],
        "dependencies": ["development"]
    }
]
