//! The files that come with the crate.

use crate::registry::{Kind, SourceFile};

macro_rules! embedded {
    ($kind:ident: $($path:literal)*) => {
        [$(SourceFile {
            kind: Kind::$kind,
            file: concat!("builtin/", $path),
            text: include_str!(concat!("../", $path)),
        }),*]
    };
}

const AGENTS: [SourceFile<'static>; 20] = embedded! { Agent:
    "agents/ai_ml_specialist.md"
    "agents/api_designer.md"
    "agents/backend_developer.md"
    "agents/cloud_architect.md"
    "agents/compliance_specialist.md"
    "agents/data_engineer.md"
    "agents/database_specialist.md"
    "agents/devops_deployment.md"
    "agents/frontend_developer.md"
    "agents/full_stack_engineer.md"
    "agents/mobile_developer.md"
    "agents/model_strategy_specialist.md"
    "agents/monitoring_specialist.md"
    "agents/performance_engineer.md"
    "agents/project_architect.md"
    "agents/qa_testing.md"
    "agents/security_specialist.md"
    "agents/site_reliability_engineer.md"
    "agents/technical_writer.md"
    "agents/ui_designer.md"
};

const PARTIALS: [SourceFile<'static>; 17] = embedded! { Partial:
    "partials/brief.md"
    "partials/decisions.md"
    "partials/deliverables.md"
    "partials/diagrams.md"
    "partials/evidence.md"
    "partials/existing_code.md"
    "partials/for_anyone.md"
    "partials/form.md"
    "partials/gaps.md"
    "partials/handed_over.md"
    "partials/next_tasks.md"
    "partials/report.md"
    "partials/secrets.md"
    "partials/severity.md"
    "partials/tools.md"
    "partials/untrusted.md"
    "partials/using.md"
};

const WORKFLOWS: [SourceFile<'static>; 10] = embedded! { Workflow:
    "workflows/ai_product.yaml"
    "workflows/backend_only.yaml"
    "workflows/data_platform.yaml"
    "workflows/documentation_first.yaml"
    "workflows/documentation_only.yaml"
    "workflows/incident_response.yaml"
    "workflows/legacy_modernisation.yaml"
    "workflows/mobile.yaml"
    "workflows/security_review.yaml"
    "workflows/small_product.yaml"
};

pub(crate) fn files() -> impl Iterator<Item = SourceFile<'static>> {
    AGENTS.into_iter().chain(PARTIALS).chain(WORKFLOWS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_of_the_crate_is_embedded() {
        let embedded: BTreeSet<String> = files().map(|file| file.file.to_owned()).collect();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let there: BTreeSet<String> = ["agents", "partials", "workflows"]
            .iter()
            .flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap())
            .map(|entry| {
                let path = entry.unwrap().path();
                format!("builtin/{}", path.strip_prefix(root).unwrap().display())
            })
            .collect();
        assert_eq!(embedded, there);
    }
}
