# Linear execution with dependencies
workflow = [
    ("project_architect", {}),
    ("technical_writer", {"input": "architecture_output"}),
    ("backend_developer", {"input": "requirements_doc"}),
    ("frontend_developer", {"input": "api_specification"}),
    ("qa_testing", {"input": ["backend_output", "frontend_output"]}),
    ("devops_deployment", {"input": "tested_application"})
]
